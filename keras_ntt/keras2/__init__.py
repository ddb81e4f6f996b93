"""Models of Keras 2, and of tf_keras, made again in Keras 3."""
