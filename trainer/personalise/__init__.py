"""Fine-tune the generator for one person: `trainer.personalise.personalise`."""

from trainer.personalise.run import STEPS, PersonaliseError, personalise

__all__ = ["STEPS", "PersonaliseError", "personalise"]
