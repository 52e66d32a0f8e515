"""Fused ops: one name each, with a reference in plain PyTorch and faster versions in Numba (CPU) and Triton (CUDA)."""

from convolt.kernels.bias import bias_relu
from convolt.kernels.conv import conv_relu_max_pool
from convolt.kernels.crossentropy import softmax_crossentropy
from convolt.kernels.depthwise import depthwise_conv
from convolt.kernels.gemm import gemm_conv, gemm_passes
from convolt.kernels.max_pool import max_pool
from convolt.kernels.norm import bn, bn_activation, bn_add, bn_add_relu, bn_relu, inference_affine
from convolt.kernels.norm_pool import bn_relu_max_pool
from convolt.kernels.pool import bias_relu_max_pool, relu_max_pool
from convolt.kernels.registry import KERNELS, Kernel, KernelWarning, choose, why_not
from convolt.kernels.resize import resize
from convolt.kernels.sparse import pooled_conv
from convolt.kernels.tiles import tiled_conv, tiled_filters, tiles_pay
from convolt.kernels.warp import picture_means, warp
from convolt.kernels.winograd import winograd_conv, winograd_filters, winograd_max_pool, winograd_takes

__all__ = [
    "KERNELS",
    "Kernel",
    "KernelWarning",
    "bias_relu",
    "bias_relu_max_pool",
    "bn",
    "bn_activation",
    "bn_add",
    "bn_add_relu",
    "bn_relu",
    "bn_relu_max_pool",
    "choose",
    "conv_relu_max_pool",
    "depthwise_conv",
    "gemm_conv",
    "gemm_passes",
    "inference_affine",
    "max_pool",
    "picture_means",
    "pooled_conv",
    "relu_max_pool",
    "resize",
    "softmax_crossentropy",
    "tiled_conv",
    "tiled_filters",
    "tiles_pay",
    "warp",
    "why_not",
    "winograd_conv",
    "winograd_filters",
    "winograd_max_pool",
    "winograd_takes",
]
