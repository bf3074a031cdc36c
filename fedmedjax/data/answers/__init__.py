"""From a model's answer back to spans of the sentence: markup, JSON lists, alignment."""
