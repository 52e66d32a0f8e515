"""Recurrent layers: cells, layers over them, both directions, and convolutional ones."""

from convolt.layers.recurrent.cells import GRUCell, LSTMCell, SimpleRNNCell
from convolt.layers.recurrent.convolutional import ConvLSTM1D, ConvLSTM2D, ConvLSTM3D
from convolt.layers.recurrent.gated import GRU, LSTM, SimpleRNN
from convolt.layers.recurrent.rnn import RNN
from convolt.layers.recurrent.stacked import StackedRNNCells
from convolt.layers.recurrent.wrappers import Bidirectional, TimeDistributed

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "GRUCell",
    "LSTMCell",
    "SimpleRNN",
    "SimpleRNNCell",
    "StackedRNNCells",
    "TimeDistributed",
]
