#!/bin/bash
#SBATCH --job-name=dqlib
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# The teacher and all students of a task, on all GPUs of the job; docs/scale-out.md explains it. It has not been tried.
#
#     sbatch tools/slurm.sh PROFILE TASK
#
# Submit it from the clone, on a file system that all nodes share. compute.processes of the profile is nodes times GPUs.
# After a preemption SLURM queues the job again, and trainings go on from their last checkpoints.
set -euo pipefail
profile=$1
task=${2:-summarization}
. .venv/bin/activate
gpus=${SLURM_GPUS_ON_NODE:-4}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export DQLIB_LAUNCHER="srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc-per-node=$gpus \
--rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$first:29500"
python -m dqlib.study plan --params "$profile" --task "$task"
python -m dqlib.study make students --params "$profile" --task "$task"
