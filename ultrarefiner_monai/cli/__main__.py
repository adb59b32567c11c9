from ultrarefiner_monai.cli import main

main()
