"""What reads the backbone: heads for pre-training and fine-tuning."""
