"""Predicts the memory of a batch, and cuts it into rows that fit."""
