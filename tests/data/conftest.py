from tests.data.photos import toy_folder, toy_source  # noqa: F401  (fixtures)
