"""Hugging Face's Trainer: from_pretrained builds a model without blurs, so convert what it returns, every time."""

import torch
from torchvision.datasets import ImageFolder
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import blurify


def load(path):
    return blurify.convert(AutoModelForImageClassification.from_pretrained(path))


def train(path, pictures, out, **options):
    processor = AutoImageProcessor.from_pretrained(path)
    options = {"learning_rate": 1e-4, "num_train_epochs": 10, "remove_unused_columns": False, **options}

    def collate(samples):
        batch = processor([picture for picture, _ in samples], return_tensors="pt")
        return {**batch, "labels": torch.tensor([label for _, label in samples])}

    trainer = Trainer(load(path), TrainingArguments(out, **options), collate, ImageFolder(pictures))
    trainer.train()
    trainer.save_model()  # weights and the configuration of the class: load(out) makes the same blurs again
    processor.save_pretrained(out)
    return trainer
