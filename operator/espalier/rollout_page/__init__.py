"""Kept rollouts as one page of HTML, to be read without a network. Pure."""

from espalier.rollout_page.page import page

__all__ = ["page"]
