"""Colours and types that all figures share."""

from pathlib import Path
from typing import IO

import matplotlib
import numpy as np
from jaxtyping import Float

Images = Float[np.ndarray, "n height width channels"]
File = Path | IO[str]
# Colours that stay distinct for colour-blind readers (Petroff 2021), one for each digit.
COLORS = matplotlib.color_sequences["petroff10"]
GRAY = "0.35"
