"""A PACS over DICOMweb: what it lists, what is fetched from it and stored to it, who asks; and images as DICOMweb hands them out."""
