"""Full fine-tuning: one checkpoint's weights at a time, exchanged in place."""
