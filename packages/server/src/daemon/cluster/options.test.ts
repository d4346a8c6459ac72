import { describe, expect, test } from 'bun:test'
import { CkptError, CLUSTER_TIMES } from '@ckpt/core'
import { SERVE_DEFAULTS, type ServeOptions } from '../options.ts'
import { clusterOptions } from './options.ts'

const TOKEN = { clusterTokenFile: '/t' }
const options = (more: Partial<ServeOptions>, env: Record<string, string> = {}) =>
  clusterOptions({ ...SERVE_DEFAULTS, ...more }, env)

function refusal(more: Partial<ServeOptions>, env: Record<string, string> = {}): string {
  try {
    options(more, env)
  } catch (error) {
    if (error instanceof CkptError) return `${error.code}: ${error.message}`
    throw error
  }
  throw new Error('was accepted')
}

describe('flags', () => {
  test('all three and a token make a cluster', () => {
    expect(options({ leader: 'n0:29400', nodeRank: 1, nodes: 2, ...TOKEN })).toEqual({
      nodeRank: 1,
      nodes: 2,
      leader: { host: 'n0', port: 29_400 },
      tokenFile: '/t',
      times: CLUSTER_TIMES,
    })
  })

  test('nothing, or one node, is a daemon alone, whatever the environment says', () => {
    const env = { MASTER_ADDR: 'n0', MASTER_PORT: '1', RANK: '1', WORLD_SIZE: '2' }
    expect(options({}, env)).toBeNull()
    expect(options({ nodes: 1, nodeRank: 0, leader: 'here:1' }, env)).toBeNull()
    expect(options({ nodes: 1 }, env)).toBeNull()
  })

  test.each([
    [{ nodes: 2 }, 'belong together'],
    [{ nodeRank: 1 }, 'belong together'],
    [{ leader: 'n0:1' }, 'belong together'],
    [{ nodes: 2, nodeRank: 1 }, 'belong together'],
    [{ nodes: 2, leader: 'n0:1' }, 'belong together'],
    [{ nodes: 1, nodeRank: 1 }, '--node-rank is 1, with --nodes 1 it must lie in [0, 0]'],
    [{ nodes: 2, nodeRank: 2, leader: 'n0:1' }, 'it must lie in [0, 1]'],
    [{ nodes: 0 }, '--nodes is 0'],
    [{ nodes: 4097 }, '--nodes is 4097'],
    [{ nodes: 2, nodeRank: 1, leader: 'n0' }, '--leader wants HOST:PORT'],
    [{ nodes: 2, nodeRank: 1, leader: 'n0:0' }, 'a follower must know the port'],
  ])('%p is refused', (told, words) => {
    expect(refusal({ ...told, ...TOKEN })).toStartWith('bad_request')
    expect(refusal({ ...told, ...TOKEN })).toContain(words)
  })

  test('without a token it is refused, on loopback too, with how to make one', () => {
    const text = refusal({ leader: '127.0.0.1:1', nodeRank: 0, nodes: 2 })
    expect(text).toStartWith('bad_request: --nodes above 1 needs --cluster-token-file')
    expect(text).toContain('openssl rand -hex 32')
  })
})

describe('--leader env', () => {
  const env = (more: Record<string, string>) => ({
    MASTER_ADDR: 'n0',
    MASTER_PORT: '29500',
    ...more,
  })
  const of = (more: Record<string, string>) => options({ leader: 'env', ...TOKEN }, env(more))

  test.each([
    ['a pod for each node', { RANK: '1', WORLD_SIZE: '4' }],
    ['Slurm', { SLURM_NODEID: '1', SLURM_NNODES: '4', RANK: '9', WORLD_SIZE: '32' }],
    ['NODE_RANK', { NODE_RANK: '1', NNODES: '4' }],
    [
      'a worker of torchrun',
      {
        GROUP_RANK: '1',
        GROUP_WORLD_SIZE: '4',
        RANK: '9',
        WORLD_SIZE: '32',
        LOCAL_WORLD_SIZE: '8',
      },
    ],
  ])('%s', (_, more) => {
    expect(of(more)).toMatchObject({
      nodeRank: 1,
      nodes: 4,
      leader: { host: 'n0', port: 29_501 },
    })
  })

  test('a port of its own, an address of version 6, and flags first', () => {
    const more = { RANK: '1', WORLD_SIZE: '4', CKPT_LEADER_PORT: '7', MASTER_ADDR: '::1' }
    expect(of(more)!.leader).toEqual({ host: '::1', port: 7 })
    const told = { leader: 'env', nodeRank: 2, nodes: 3, ...TOKEN }
    expect(options(told, env(more))).toMatchObject({ nodeRank: 2, nodes: 3 })
  })

  test.each([
    [{ MASTER_ADDR: '' }, 'MASTER_ADDR is not set'],
    [{ MASTER_PORT: '' }, 'neither CKPT_LEADER_PORT nor MASTER_PORT is set'],
    [{ MASTER_PORT: '65535' }, '65536 is no port'],
    [{ RANK: 'one' }, "RANK is 'one'"],
    [{ RANK: '' }, 'set --node-rank, or GROUP_RANK or NODE_RANK or SLURM_NODEID or RANK'],
    [{ LOCAL_WORLD_SIZE: '8' }, 'set --nodes, or GROUP_WORLD_SIZE or NNODES or SLURM_NNODES'],
  ])('%p is refused', (more, words) => {
    const all = { RANK: '1', WORLD_SIZE: '4', ...more }
    expect(refusal({ leader: 'env', ...TOKEN }, env(all))).toContain(words)
  })
})
