import { expect, test } from 'bun:test'
import { rdmaCheck } from './rdma-check.ts'

const FOUR = ['mlx5_0', 'mlx5_1', 'mlx5_2', 'mlx5_3']
const none = { devices: undefined, hca: undefined }

test.each([
  [[], none, 8, 'absent', 'none', /read over TCP/],
  [FOUR, none, 0, 'ok', 'mlx5_0, mlx5_1, mlx5_2, mlx5_3 of 4', null],
  [FOUR, none, 8, 'ok', 'mlx5_0, mlx5_1, mlx5_2, mlx5_3 of 4, one for 2 GPUs', null],
  [FOUR, none, 2, 'ok', 'mlx5_0, mlx5_1, mlx5_2, mlx5_3 of 4, 2 for each GPU', null],
  [FOUR, { ...none, hca: '=mlx5_1' }, 1, 'ok', 'mlx5_1 of 4 (NCCL_IB_HCA), 1 for each GPU', null],
  [
    FOUR,
    { ...none, hca: '^mlx5_3' },
    8,
    'note',
    'mlx5_0, mlx5_1, mlx5_2 of 4 (NCCL_IB_HCA)',
    /do not divide/,
  ],
  [FOUR, { ...none, hca: 'ib0' }, 8, 'note', 'mlx5_0, mlx5_1, mlx5_2, mlx5_3 of 4', /names none/],
  [
    FOUR,
    { ...none, devices: 'mlx5_0,mlx5_9' },
    8,
    'note',
    'mlx5_0, mlx5_9 of 4 (PS_P2P_STORE_RDMA_DEVICES)',
    /mlx5_9 is not there/,
  ],
] as const)('%j with %j and %d GPUs', (available, settings, gpus, state, found, fix) => {
  const check = rdmaCheck(available, settings, gpus)
  expect([check.state, check.found]).toEqual([state, found])
  if (fix === null) expect(check.fix).toBeUndefined()
  else expect(check.fix).toMatch(fix)
})
