"""Prompts to label maps, and label maps to scores."""
