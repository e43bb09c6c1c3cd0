import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # gather_cases.py; importlib mode adds no folder
