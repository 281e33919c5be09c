"""What only shows when settings meet the streaming side, looked at before anything starts."""

from services.settings import Settings, SettingsError


def check_sources(settings: Settings) -> None:
    """Compile the mapping of every source, and read the schemas that stand in files.

    Raises:
        SettingsError: a mapping names what does not exist, or a schema cannot be used; with the setting's path.
    """
    from streaming.errors import StreamingError
    from streaming.events import EventDecoder

    for source in settings.streaming.sources:
        try:
            EventDecoder(settings.streaming, source)
        except (ValueError, StreamingError, OSError) as error:
            raise SettingsError(str(error)) from None
