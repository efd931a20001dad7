#!/usr/bin/env python
"""Trains and evaluates OneNet, or a baseline, with Detectron2.

python train_net.py --config-file configs/digits/onenet_fcos_R18_FPN.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
python train_net.py --config-file ... --num-gpus 8 --resume
python train_net.py --config-file ... DATASETS.TRAIN_JSON a.json DATASETS.TRAIN_IMAGE_ROOT a/
"""

import argparse

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from onenet.engine import Trainer, check_limits, launch_workers, load_for_evaluation, setup
from onenet.utils.errors import exit_with_one_sentence


def main(args: argparse.Namespace) -> None:
    """What every worker runs."""
    with exit_with_one_sentence():
        cfg = setup(args)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            load_for_evaluation(cfg, model, args.resume)
            results = Trainer.test(cfg, model)
            if comm.is_main_process():
                verify_results(cfg, results)
            check_limits(cfg, results)
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            trainer.train()


if __name__ == "__main__":
    launch_workers(main, default_argument_parser().parse_args())
