"""Makes a small model, or a draft head, that draws the same tokens as a large model, on prompts of one kind.

The teacher answers the prompts through Paceline's own engine, and the student learns to predict what the teacher would
have said next. It can be served alone, or guess tokens for the teacher (docs/models.md#distillation).
"""
