"""The models of `make wild-check`: those of other libraries than timm and torchvision, one file a group of libraries."""
