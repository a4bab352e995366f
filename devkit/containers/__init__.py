"""The images, built and run: ``make containers``. Its ``--help`` says what that takes."""
