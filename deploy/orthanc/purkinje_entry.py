"""Entry script for Orthanc's Python plugin. It lies alone in its folder: Orthanc puts that folder first on sys.path."""

try:
    from orthanc_plugin.plugin import register

    register()
except BaseException as error:  # noqa: BLE001 - the PACS comes before the AI: Orthanc starts whatever is wrong with us
    import orthanc

    orthanc.LogError(f"purkinje: the plugin stays off: {type(error).__name__}: {error}")
