"""Optimisers (AdamW, SGD) with gradient clipping over the full model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch.nn.utils import clip_grad_norm_

from ..utils.errors import ConfigError

__all__ = ["build_optimizer", "check_optimizer_state", "clip_full_model", "clipped_adamw"]


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Builds the optimiser of ``cfg.SOLVER``.

    Detectron2's ``SOLVER.CLIP_GRADIENTS`` clips each parameter separately. The additional
    ``CLIP_TYPE`` "full_model" clips the joint norm of all gradients.

    Raises:
        ConfigError: ``SOLVER.OPTIMIZER`` or ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is unknown.
    """
    factor = cfg.SOLVER.BACKBONE_LR_FACTOR
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        # Below the FPN or neck
        lr_factor_func=lambda name: factor if "backbone.bottom_up." in name else 1.0,
    )
    settings = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        # Fused on the CPU only: with AMP the fused optimiser gets scaled gradients, which clipping
        # would then see
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        optimizer = torch.optim.AdamW(params, fused=on_cpu, **settings)
    elif cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            params, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV, **settings
        )
    else:
        raise ConfigError(f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; choose 'AdamW' or 'SGD'.")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer
    try:
        return maybe_add_gradient_clipping(cfg, optimizer)
    except ValueError as error:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{clip.CLIP_TYPE}'; choose 'full_model', 'norm' or"
            " 'value'."
        ) from error


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Settings of each parameter group, such as weight_decay, without the learning rate."""
    rates = ("params", "lr", "initial_lr")
    return [{k: v for k, v in g.items() if k not in rates} for g in optimizer.param_groups]


def set_group_settings(
    optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]
) -> list[str]:
    """Sets the result of :func:`group_settings`; returns what changed, as "name value"."""
    changed = {}
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        changed.update({k: v for k, v in own.items() if group.get(k) != v})
        group.update(own)
    return [f"{name} {value}" for name, value in changed.items()]


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Checks a saved state against the optimizer's parameters, as torch does not.

    A fused step writes out of bounds where a moment has fewer values than its parameter.

    Args:
        optimizer: of the model.
        state: a ``state_dict``, not yet loaded; None for none.

    Raises:
        ConfigError: there is none; or type, parameter groups or shapes differ.
    """
    own, saved = optimizer.param_groups, state["param_groups"] if state else []
    same_type = bool(saved) and ("betas" in own[0]) == ("betas" in saved[0])
    fits = same_type and [len(g["params"]) for g in own] == [len(g["params"]) for g in saved]
    if fits:
        parameters = [p for group in own for p in group["params"]]
        ids = [i for group in saved for i in group["params"]]
        fits = all(
            value.shape == parameter.shape
            for parameter, i in zip(parameters, ids, strict=True)
            for value in state["state"].get(i, {}).values()
            if torch.is_tensor(value) and value.dim()
        )
    if not fits:
        raise ConfigError(
            "--resume: the optimizer's state in the checkpoint is missing, or of other parameters"
            " than the config's model and SOLVER have; give the config of the run, or start a new"
            " run with another OUTPUT_DIR, and the checkpoint as MODEL.WEIGHTS."
        )


def clipped_adamw(params: Iterable, *, max_norm: float, **kwargs: Any) -> torch.optim.AdamW:
    """AdamW with :func:`clip_full_model`, for LazyConfigs.

    Args:
        params: parameters or parameter groups.
        max_norm: see :func:`clip_full_model`.
        **kwargs: for AdamW.
    """
    optimizer = torch.optim.AdamW(params, **kwargs)
    clip_full_model(optimizer, max_norm)
    return optimizer


def clip_full_model(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> None:
    """Clips the joint norm of all gradients to ``max_norm`` before every step.

    A step hook, so that with AMP it sees unscaled gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)
