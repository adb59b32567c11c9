"""Between a studies folder and a PACS: the mirror of its images, SEGs that come in, objects that go out."""
