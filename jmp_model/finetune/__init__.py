"""Fine-tuning: tasks, heads, layer-wise rates, schedule, loop, evaluation and results beside the published ones."""
