#!/bin/bash
# Trains on two nodes of a Slurm cluster, from the directory of the project:
#
#     sbatch examples/cluster/slurm.sh --flagfile=flowers.flags
#
# Flags are those of train.py. --cluster=auto reads what srun sets in each process; one process
# uses all GPUs of its node. Two minutes before its time is over the job saves and ends, and the
# same command with --workdir=runs/JOB goes on, with another number of nodes too.

#SBATCH --job-name=tl_research
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@120

srun --kill-on-bad-exit=1 .venv/bin/python train.py --distribute=multi_worker \
    --worker_timeout=600 --workdir="runs/$SLURM_JOB_ID" "$@"
