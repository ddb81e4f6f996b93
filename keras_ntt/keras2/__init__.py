"""Convert models of Keras 2, and of tf_keras, to Keras 3."""
