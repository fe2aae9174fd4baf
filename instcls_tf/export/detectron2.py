"""The backbone's weights for Detectron2: a pickle in the layout of MoCo's converter, and the R50-C4 recipe for it.

Detectron2 is on no package registry and was not run: names and values are tested.
"""

from __future__ import annotations

import os
import pickle

from instcls_tf.config import RESNET50
from instcls_tf.encoder.networks import IMAGENET_MEAN, IMAGENET_STD
from instcls_tf.errors import UserError
from instcls_tf.export import torch_names
from instcls_tf.export.subject import Subject
from instcls_tf.export.torchvision import architecture_of, state_dict
from instcls_tf.export.writing import Format

_USE = """
`model.pkl` has the names of MoCo's converter, `R50-C4.yaml` its settings for Pascal VOC (24k iterations):

```bash
cd {folder}
python train_net.py --config-file R50-C4.yaml
```

with MoCo's `train_net.py`, which has the head `Res5ROIHeadsExtraNorm`. Detectron2 was not run on this file: its names
and values were compared with the torchvision export.
"""

_RECIPE = """\
# Faster R-CNN R50-C4 on Pascal VOC 07+12, as MoCo fine-tunes it.
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  WEIGHTS: "model.pkl"
  MASK_ON: False
  PIXEL_MEAN: [{mean}]
  PIXEL_STD: [{std}]
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    NORM: "SyncBN"
    STRIDE_IN_1X1: False  # v1.5
  RPN:
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: "Res5ROIHeadsExtraNorm"  # of MoCo's train_net.py: a BN after res5
    NUM_CLASSES: 20
INPUT:
  FORMAT: "RGB"
  MIN_SIZE_TRAIN: (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: ("voc_2007_trainval", "voc_2012_trainval")
  TEST: ("voc_2007_test",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: (18000, 22000)
  MAX_ITER: 24000
  WARMUP_ITERS: 100
TEST:
  PRECISE_BN:
    ENABLED: True
VERSION: 2
"""


def _write(subject: Subject, folder: str) -> None:
    arrays = state_dict(subject.encoder.get_layer("backbone"))
    model = {torch_names.to_detectron2(name): array for name, array in arrays.items()}
    with open(os.path.join(folder, "model.pkl"), "wb") as file:
        pickle.dump({"model": model, "__author__": "instcls_tf", "matching_heuristics": True}, file, protocol=4)
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with open(os.path.join(folder, "R50-C4.yaml"), "w", encoding="utf-8") as file:
        file.write(_RECIPE.format(mean=mean, std=std))


def _architecture_of(subject: Subject) -> str:
    architecture = architecture_of(subject)
    if architecture != RESNET50:
        raise UserError("--format=detectron2: the R50-C4 detector wants a run with --encoder=resnet50")
    return architecture


DETECTRON2 = Format("detectron2", _write, _USE, any_size=False, architecture_of=_architecture_of)
