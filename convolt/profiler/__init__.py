"""What the hardware does while a model trains."""

from convolt.profiler.gpustat import GpuStat

__all__ = ["GpuStat"]
