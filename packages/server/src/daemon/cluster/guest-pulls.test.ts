/** A guest of whole daemons, in this process: what they offer it, and when they do no more. */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CkptError, type PullRequest, type RegisterAnswer } from '@ckpt/core'
import { selectDevices } from '@ckpt/cuda'
import { request } from '../../../../../test/support/process.ts'
import { withoutUcx } from '../../../../../test/support/ucx.ts'
import { until } from '../../../../../test/support/until.ts'
import type { Offer, Registry } from '../registry/registry.ts'
import { safetensors, u8 } from '../registry/testing/fixture.ts'
import { type RunningDaemon, serve } from '../serve.ts'
import { GuestPulls } from './guest-pulls.ts'
import { freePort } from './testing/free-port.ts'

setDefaultTimeout(60_000)

const WAIT_MS = 10_000
const ANSWER: RegisterAnswer = { name: 'm', version: 'v1', tensors: 2, bytes: 900, seconds: 0 }

let dir: string
let port: number
let daemons: RunningDaemon[]

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-guest-'))
  writeFileSync(join(dir, 'token'), 'the-token\n', { mode: 0o600 })
  port = freePort()
  daemons = []
})

afterEach(async () => {
  for (const daemon of daemons) await daemon.close('the test has ended')
  rmSync(dir, { recursive: true, force: true })
})

const socket = (node: number) => join(dir, `${node}.sock`)

async function start(nodeRank: number): Promise<RunningDaemon> {
  const daemon = await serve({
    devices: 'host:1',
    ranks: 1,
    uds: socket(nodeRank),
    stateDir: join(dir, `${nodeRank}`),
    leader: `127.0.0.1:${port}`,
    nodeRank,
    nodes: 2,
    clusterTokenFile: join(dir, 'token'),
  })
  daemons.push(daemon)
  return daemon
}

/** Each daemon has one tensor. */
async function register(node: number, version = 'v1', name = 'm'): Promise<void> {
  const file = join(dir, `${name}-${node}.safetensors`)
  writeFileSync(file, safetensors({ [`w.${node}`]: u8(400 + node, node) }))
  const body = { files: [file], version, replace: true }
  const answer = await request(socket(node), 'POST', `/v1/checkpoints/${name}/files`, body)
  expect(answer.status).toBe(200)
}

async function inUse(node: number): Promise<boolean> {
  const { body } = await request(socket(node), 'GET', '/v1/checkpoints/m')
  return body.in_use
}

/** `take` stands for the copy. */
function guest(take: (offer: Offer) => Promise<RegisterAnswer>): GuestPulls {
  const registry: Pick<Registry, 'pull'> = { pull: (_name, offer) => take(offer) }
  return new GuestPulls({ ...selectDevices('host:1', 2), registry })
}

function asked(more: Partial<PullRequest> = {}): PullRequest {
  return { leader: `127.0.0.1:${port}`, cluster_token_file: join(dir, 'token'), ...more }
}

async function failureOf(work: Promise<unknown>): Promise<CkptError> {
  return work.then(
    () => expect.unreachable('it did not fail'),
    (error) => CkptError.wrap(error),
  )
}

/** Whoever asks waits for the answer. */
const stays = new AbortController().signal

/** A copy that goes on until it is ended. */
const toTheEnd = async ({ gone }: Offer) => {
  const ended = Promise.withResolvers<never>()
  gone.addEventListener('abort', () => ended.reject(new Error('a read that was ended')))
  return ended.promise
}

const nothing = () => Promise.reject(new Error('nothing was to be copied'))

describe.skipIf(withoutUcx !== null)('a guest', () => {
  test('is offered what all daemons hold, which they keep until it has confirmed', async () => {
    await Promise.all([start(0), start(1)])
    await Promise.all([register(0), register(1)])
    const pulls = guest(async (offer) => {
      expect(offer.version).toBe('v1')
      expect(offer.table.names.toSorted()).toEqual(['w.0', 'w.1'])
      expect(offer.remotes).toHaveLength(2)
      expect(offer.devices).toHaveLength(1)
      expect([await inUse(0), await inUse(1)]).toEqual([true, true])
      await offer.confirm()
      await until(
        'neither to be in use',
        WAIT_MS,
        async () => !(await inUse(0)) && !(await inUse(1)),
      )
      return ANSWER
    })
    expect(await pulls.pull('m', asked({ version: 'v1' }), stays)).toEqual(ANSWER)
    // nobody counts with it
    const { body } = await request(socket(0), 'GET', '/v1/status')
    expect(body.ranks).toHaveLength(2)
    await until('the other daemon to be the only peer', WAIT_MS, async () => {
      const status = await request(socket(0), 'GET', '/v1/status')
      return status.body.cluster.peers.length === 1
    })
  })

  test('changes nothing of what was gathered, by the leader or the others', async () => {
    await Promise.all([start(0), start(1)])
    const both = [0, 1]
    await Promise.all(both.flatMap((node) => [register(node), register(node, 'v7', 'other')]))
    await until('both parts to be gathered', WAIT_MS, async () => {
      const gather = await request(socket(0), 'POST', '/v1/checkpoints/other/gather-metas', {})
      return gather.body.tensors === 2
    })
    const metas = async (node: number) => (await request(socket(node), 'GET', '/v1/metas')).body
    const before = await Promise.all(both.map(metas))
    expect(before.map((told) => Object.keys(told).length)).toEqual([2, 2])
    const pulls = guest(async (offer) => {
      expect(offer.version).toBe('v1')
      expect(await Promise.all(both.map(metas))).toEqual(before)
      await offer.confirm()
      return ANSWER
    })
    expect(await pulls.pull('m', asked(), stays)).toEqual(ANSWER)
    expect(await Promise.all(both.map(metas))).toEqual(before)
  })

  test('waits for a daemon that has not come yet', async () => {
    await start(0)
    await register(0)
    const pulls = guest(async (offer) => {
      expect(offer.table.names).toHaveLength(1)
      return ANSWER
    })
    const late = await failureOf(pulls.pull('m', asked({ join_timeout: 4 }), stays))
    expect(late.failure).toMatchObject({ code: 'node_lost' })
    expect(late.message).toContain('node 1 has not joined')
    const pulled = pulls.pull('m', asked(), stays)
    await Bun.sleep(300)
    await start(1)
    expect(await pulled).toEqual(ANSWER)
  })

  test('is told what is not there, and by whom it is not taken', async () => {
    await Promise.all([start(0), start(1)])
    await register(0)
    const pulls = guest(nothing)
    const other = await failureOf(pulls.pull('m', asked({ version: 'v2' }), stays))
    expect(other.code).toBe('checkpoint_not_found')
    expect(other.message).toContain("'m' is held as version v1, not as version v2")
    expect((await failureOf(pulls.pull('n', asked(), stays))).code).toBe('checkpoint_not_found')
    expect(await inUse(0)).toBe(false)
    writeFileSync(join(dir, 'other'), 'another-token', { mode: 0o600 })
    const strange = asked({ cluster_token_file: join(dir, 'other'), join_timeout: 4 })
    const refused = await failureOf(pulls.pull('m', strange, stays))
    expect(refused.code).toBe('leader_lost')
    expect(refused.message).toContain('did not answer within 4 s: ')
    expect(refused.message).toContain('it has another cluster token, or is no leader')
    for (const wrong of [{ leader: 'nowhere' }, { cluster_token_file: join(dir, 'none') }]) {
      expect((await failureOf(pulls.pull('m', asked(wrong), stays))).code).toBe('bad_request')
    }
    // it would be its own guest
    const own = await request(socket(1), 'POST', '/v1/checkpoints/m/pull', asked())
    expect(own.body.error).toMatchObject({ code: 'not_supported' })
  })

  test('hears amid its copy that the leader is lost, that a daemon is, or that time is up', async () => {
    await Promise.all([start(0), start(1)])
    await Promise.all([register(0), register(1)])
    const slow = await failureOf(guest(toTheEnd).pull('m', asked({ timeout: 0.5 }), stays))
    expect(slow.code).toBe('update_timeout')
    expect(slow.message).toContain('longer than its timeout of 0.5 s')
    await until('neither to be in use', WAIT_MS, async () => !(await inUse(0)) && !(await inUse(1)))
    const closing = guest(toTheEnd)
    const ended = failureOf(closing.pull('m', asked(), stays))
    await until('the first to be in use', WAIT_MS, () => inUse(0))
    closing.close()
    expect((await ended).code).toBe('shutting_down')
    // what it read of a daemon that is gone may have been anything
    const without = guest(async (offer) => {
      await daemons.find(({ address }) => address.includes('1.sock'))?.close('lost')
      await offer.confirm()
      return ANSWER
    })
    expect((await failureOf(without.pull('m', asked(), stays))).code).toBe('node_lost')
    await start(1)
    await register(1)
    const alone = failureOf(guest(toTheEnd).pull('m', asked(), stays))
    await until('the first to be in use', WAIT_MS, () => inUse(0))
    await daemons.find(({ address }) => address.includes('0.sock'))?.close('lost')
    expect((await alone).code).toBe('leader_lost')
    expect((await alone).message).toContain("'m' could not be copied from the daemons")
  })

  test('ends with the request that asks for its copy, and what was held stays', async () => {
    await start(0)
    const alone = { devices: 'host:1', ranks: 1, stateDir: join(dir, 'alone') }
    daemons.push(await serve({ ...alone, uds: socket(7) }))
    await Promise.all([register(0, 'v1'), register(7, 'v0')])
    const peers = async () => {
      const { body } = await request(socket(0), 'GET', '/v1/status')
      return body.cluster.peers.length as number
    }
    const before = await peers()
    const asks = new AbortController()
    // it waits for daemon 1
    const answer = fetch('http://ckpt/v1/checkpoints/m/pull', {
      unix: socket(7),
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(asked({ replace: true, join_timeout: 60 })),
      signal: asks.signal,
    })
    await until('the guest to join', WAIT_MS, async () => (await peers()) === before + 1)
    asks.abort()
    await expect(answer).rejects.toThrow('aborted')
    await until('the guest to leave', WAIT_MS, async () => (await peers()) === before)
    const held = await request(socket(7), 'GET', '/v1/checkpoints/m')
    expect(held.body).toMatchObject({ version: 'v0', in_use: false })
    await start(1)
    await register(1)
    const amid = new AbortController()
    const ended = failureOf(guest(toTheEnd).pull('m', asked(), amid.signal))
    await until('the first to be in use', WAIT_MS, () => inUse(0))
    amid.abort()
    expect((await ended).failure).toMatchObject({ code: 'aborted' })
    await until('neither to be in use', WAIT_MS, async () => !(await inUse(0)) && !(await inUse(1)))
    const late = await failureOf(guest(nothing).pull('m', asked(), amid.signal))
    expect(late.code).toBe('aborted')
  })
})
