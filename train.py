"""Fine-tunes a pretrained image backbone in phases and proves what it did.

    python train.py --flagfile=flowers.flags

trains the two-phase recipe and prints one honest test number; the README has the times and
accuracies. Settings are declared in `tl_research/config.py`, the run is told in
`tl_research/experiment.py`, and this is `tl-research train`.
"""

from tl_research.train import main

if __name__ == "__main__":
    main()
