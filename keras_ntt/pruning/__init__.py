"""The methods, one file or folder each, and the callbacks that monitor them."""
