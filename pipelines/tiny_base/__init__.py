"""How the shipped small base model is made."""
