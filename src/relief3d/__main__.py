"""``python -m relief3d``."""

from relief3d.cli.main import main

if __name__ == "__main__":
    main()
