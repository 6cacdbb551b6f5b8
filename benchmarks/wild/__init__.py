"""The models of `make wild-check`: of other libraries than timm and torchvision, a file a group of them."""
