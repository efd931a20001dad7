"""Settings that differ between compared detectors although they should not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .runs import flat

__all__ = ["differences", "evaluated_values", "settings_that_matter"]

# Keys that should be equal, with their names; also all other keys of _EQUAL_GROUPS
_EQUAL_KEYS = {
    "DATASETS.TRAIN": "training data",
    "SOLVER.MAX_ITER": "iterations",
    "SOLVER.IMS_PER_BATCH": "images a batch",
    "SOLVER.OPTIMIZER": "optimiser",
    "SOLVER.BASE_LR": "learning rate",
    "SOLVER.LR_SCHEDULER_NAME": "schedule",
    "MODEL.WEIGHTS": "initial weights",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.RESNETS.DEPTH": "backbone's depth",
    "INPUT.MIN_SIZE_TRAIN": "training size",
    "INPUT.MIN_SIZE_TEST": "test size",
    "INPUT.MAX_SIZE_TEST": "largest test size",
    "TEST.DETECTIONS_PER_IMAGE": "detections an image",
}
_EQUAL_GROUPS = (
    *("SOLVER.", "INPUT.", "TEST.END_TO_END."),
    *("MODEL.BACKBONE.", "MODEL.RESNETS.", "MODEL.FPN."),
)
_FREE_KEYS = {
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.REFERENCE_BATCH",  # already applied to the learning rate
    "INPUT.MASK_FORMAT",  # masks are unused
    "TEST.END_TO_END.ENABLED",  # results exist
}
_MOST_SENTENCES = 10  # on other keys; further ones are listed in one sentence
_EVALUATED = {  # as stored by the evaluation
    "dataset": "test dataset",
    "num_images": "test images",
    "annotations": "hash of the test annotations",
    "nms_thresh": "IoU of the NMS put behind",
    "iou_thresh": "IoU of duplicates",
}
_EVALUATED_KEYS = {"TEST.END_TO_END.NMS_THRESH", "TEST.END_TO_END.IOU_THRESH"}


def differences(detectors: Sequence[dict[str, Any]]) -> list[str]:
    """Lists settings that differ although they should not, one sentence each.

    Args:
        detectors: from :func:`onenet.comparison.results.collect`.
    """

    def told(key: str, what: str) -> str:
        return _sentence(what, names, [detector["settings"].get(key) for detector in detectors])

    names = [detector["name"] for detector in detectors]
    sentences = []
    for key, what in _EVALUATED.items():
        values = [evaluated_values([detector], key) for detector in detectors]
        # An earlier commit's results may not have the key
        known = {name: found for name, found in zip(names, values, strict=True) if found}
        # The seeds of each detector may differ in the same way
        differ = any(len(found) > 1 for found in known.values())
        if known:
            sentences.append(_sentence(what, list(known), list(known.values()), differ))
    sentences += [told(key, what) for key, what in _EQUAL_KEYS.items()]
    # Keys that only some have belong to the backbone, which is compared above
    common = set.intersection(*(set(detector["settings"]) for detector in detectors))
    others = sorted(filter(_is_equal_key, common - _EVALUATED_KEYS - _EQUAL_KEYS.keys()))
    others = [key for key in others if told(key, key)]
    sentences += [told(key, key) for key in others[:_MOST_SENTENCES]]
    if len(others) > _MOST_SENTENCES:
        sentences.append(f"Also different: {', '.join(others[_MOST_SENTENCES:])}.")
    return [sentence for sentence in sentences if sentence]


def _sentence(
    what: str, names: Sequence[str], values: Sequence[Any], even_if_equal: bool = False
) -> str:
    """A sentence on which detectors have which value; by default empty if all are equal."""
    groups: dict[str, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(_shown(value), []).append(name)
    if len(groups) == 1 and not even_if_equal:
        return ""
    largest = max(groups, key=lambda value: len(groups[value]))
    rest = groups.pop(largest) if len(groups[largest]) > 3 else []
    parts = [f"{value} for {', '.join(group)}" for value, group in groups.items()]
    parts += [f"{largest} for the {len(rest)} others"] if rest else []
    return f"{what}: {'; '.join(parts)}."


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def evaluated_values(detectors: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """Distinct values of a key in the evaluations of all seeds and variants."""
    found = dict.fromkeys(
        evaluation.get(key)
        for detector in detectors
        for seed in detector["seeds"]
        for evaluation in seed["evaluations"].values()
    )
    return [value for value in found if value is not None]


def settings_that_matter(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings used by :func:`differences` and the tables, with flat keys."""
    without_fpn = "fpn" not in settings["MODEL"]["BACKBONE"]["NAME"]
    named = {"MODEL.META_ARCHITECTURE", "DATASETS.TEST", *_EQUAL_KEYS}
    return {
        k: v
        for k, v in flat(settings)
        if k in named or (_is_equal_key(k) and not (without_fpn and k.startswith("MODEL.FPN.")))
    }


def _is_equal_key(key: str) -> bool:
    return key.startswith(_EQUAL_GROUPS) and key not in _FREE_KEYS
