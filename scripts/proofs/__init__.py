"""What ``prove_programs.py`` runs: models, and programs as files of their own."""
