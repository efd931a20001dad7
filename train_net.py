#!/usr/bin/env python
"""Trains and evaluates OneNet, or a baseline, with Detectron2.

python train_net.py --config-file configs/digits/onenet_fcos_R18_FPN.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
python train_net.py --config-file ... --num-gpus 8 --resume
torchrun --nproc-per-node 8 train_net.py --config-file ...
python train_net.py --config-file ... DATASETS.TRAIN_JSON a.json DATASETS.TRAIN_IMAGE_ROOT a/
"""

from onenet.engine import argument_parser, launch_workers, main

if __name__ == "__main__":
    launch_workers(main, argument_parser().parse_args())
