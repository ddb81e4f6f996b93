"""Neural Tangent Transfer (Liu & Zenke, ICML 2020)."""
