from .base import Network as Network, full_precision as full_precision, linear_head as linear_head
from .convolutional import Convolutional as Convolutional
from .mlp import MLP as MLP
