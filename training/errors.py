"""What can go wrong in training, as one tree.

TrainingError
├── EncoderError    the text encoder cannot be loaded
├── DataError       windows or the catalogue do not fit the model
├── BundleError     a model bundle is incomplete, altered or of another format
├── RegistryError   a model version that the registry does not know
└── LearnerError    the continuous learner cannot go on
"""


class TrainingError(Exception):
    """Base of every error that this package raises on purpose."""


class EncoderError(TrainingError):
    """The text encoder cannot be loaded."""


class DataError(TrainingError):
    """Windows or the catalogue do not fit the model."""


class BundleError(TrainingError):
    """A model bundle is incomplete, altered or of another format."""


class RegistryError(TrainingError):
    """A model version that the registry does not know, or a change that it refuses."""


class LearnerError(TrainingError):
    """The continuous learner cannot go on."""
