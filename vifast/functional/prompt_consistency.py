from torch import Tensor

from vifast import _checks
from vifast.kernels.prompt_consistency import prompt_consistency as _op


def prompt_consistency(prompts: Tensor, teacher_prompts: Tensor) -> Tensor:
    r"""Mean absolute difference of two prompts, mean |P_new - P_old|; the teacher gets no gradient.

    The gradient of a prompt's pixel is sign(P_new - P_old) over the number of pixels, 0 where they are equal.

    Args:
        prompts: floating-point, any shape; the mean of no pixels is 0.
        teacher_prompts: the same shape and device.

    Returns:
        A scalar, float32 for half prompts.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: nothing the size of a prompt but its gradient. Source: spec ckda 3.5.

    Example:
        >>> import torch
        >>> prompt_consistency(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]))
        tensor(2.)
    """
    for name, value in (("prompts", prompts), ("teacher_prompts", teacher_prompts)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if prompts.shape != teacher_prompts.shape:
        raise ValueError(
            f"teacher_prompts: expected shape {list(prompts.shape)} as prompts, got {list(teacher_prompts.shape)}"
        )
    _checks.same_device("teacher_prompts", teacher_prompts, "prompts", prompts)
    return _op(prompts, teacher_prompts.detach())
