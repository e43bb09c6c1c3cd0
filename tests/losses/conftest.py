import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # dakd_oracle.py; importlib mode adds no folder
