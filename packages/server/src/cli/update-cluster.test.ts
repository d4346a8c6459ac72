/** `ckpt update` and `ckpt status` of two daemons as processes, each with an engine, on the host library. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync } from 'node:fs'
import type { StatusAnswer } from '@ckpt/core'
import { CKPT, request, run, type Started, start } from '../../../../test/support/process.ts'
import { withoutUcx } from '../../../../test/support/ucx.ts'
import { freePort } from '../daemon/cluster/testing/free-port.ts'
import { DaemonPair } from './testing/daemon-pair.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

setDefaultTimeout(60_000)

const TENSORS = [0, 1, 2].map((i) => ({ name: `${i}.weight`, dtype: 'BF16', shape: [8, 64] }))

let pair: DaemonPair
let leader: string

beforeAll(() => {
  pair = new DaemonPair()
  leader = `127.0.0.1:${freePort()}`
})

afterAll(() => pair.stop())

function startEngine(name: string): Promise<Started> {
  const listen = `unix:${pair.path(name)}`
  const what = ['--listen', listen, '--tensor-parallel-size', '1', '--devices', 'host']
  return start([...CKPT, 'engine', ...what], /the engine is ready/)
}

async function untilStatus(
  nodeRank: number,
  holds: (cluster: NonNullable<StatusAnswer['cluster']>) => boolean,
): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    const { body } = await request(pair.socket(nodeRank), 'GET', '/v1/status')
    if (holds((body as StatusAnswer).cluster!)) return
    await Bun.sleep(20)
  }
  throw new Error(`node ${nodeRank} has not come to it`)
}

function ckpt(command: string, nodeRank: number, ...flags: string[]) {
  return run([...CKPT, command, '--daemon', pair.socket(nodeRank), ...flags])
}

describe.skipIf(withoutUcx !== null)('without one of two daemons', () => {
  test('an update says who is missing, and goes on without it where that is asked for', async () => {
    const path = pair.path('model')
    mkdirSync(path)
    await writeCheckpoint(path, TENSORS, 1, 300_000)
    const started = await Promise.all([
      pair.daemon(0, leader),
      pair.daemon(1, leader),
      startEngine('a'),
      startEngine('b'),
    ])
    try {
      await untilStatus(0, ({ missing }) => missing?.length === 0)
      const endpoints = ['--endpoint', 'http://a', '--endpoint', 'http://b']
      const sockets = ['a', 'b'].flatMap((name) => ['--uds', pair.path(name)])
      const one = ['--inference-parallel-size', '1', '--engine', 'vllm', '--pause', 'none']
      const update = (...flags: string[]) =>
        ckpt('update', 0, '--checkpoint-path', path, ...endpoints, ...sockets, ...one, ...flags)
      expect(await update()).toMatchObject({ status: 0 })

      for (const gone of [started[1], started[3]]) await gone.stop('SIGKILL')
      await untilStatus(0, ({ missing }) => missing?.length === 1)
      const refused = await update()
      expect(refused.status).toBe(1)
      expect(refused.stderr).toMatch(/1 of 2 daemons is missing: node 1 \(.*\) was lost: /)
      expect((await ckpt('status', 0)).stdout).toMatch(/^missing: node 1 .* was lost: /m)

      const survivors = await update('--require', 'survivors')
      expect(survivors.stdout).toMatch(/^note: http:\/\/b of rank 1 was left out: node 1 .* lost/m)
      expect(survivors.stdout).toMatch(/ -> http:\/\/a \(.*\): 3 tensors on 1 rank,/)
      expect(survivors.status).toBe(0)
    } finally {
      await Promise.all(started.map((one) => one.stop('SIGKILL')))
    }
  })
})

test('a follower that is refused says why there is no leader', async () => {
  const leads = await pair.daemon(0, leader)
  const follower = await pair.daemon(1, leader, '--nodes', '3')
  try {
    const why = 'refuses this daemon: it was told --nodes 3, the leader --nodes 2'
    await untilStatus(1, ({ missing }) => missing?.[0]?.message.includes(why) === true)
    expect((await ckpt('status', 1)).stdout).toMatch(
      new RegExp(`^missing: the leader .* ${why}`, 'm'),
    )
    const update = await ckpt('update', 1, 'model')
    expect(update.status).toBe(3)
    expect(update.stderr).toMatch(new RegExp(`^ckpt: the leader at tcp://127.0.0.1:\\d+ ${why}\n$`))
  } finally {
    await Promise.all([leads, follower].map((one) => one.stop('SIGKILL')))
  }
})
