"""`python -m hpdm_cli`, the form that launchers such as torchrun start."""

from hpdm_cli.app import main

if __name__ == "__main__":
    main()
