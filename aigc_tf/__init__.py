"""Train text models on TPU and GPU with TensorFlow and KerasNLP, and serve them with TensorFlow Serving."""

__version__ = "0.1.0"
