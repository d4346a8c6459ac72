import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CkptError, type EngineWeights } from '@ckpt/core'
import { type Library, openLibrary } from '@ckpt/cuda'
import { expectedTensors } from 'ckpt/cli/verify-engine'
import { createRegistry } from 'ckpt/daemon/registry/held'
import { readTrace } from '../../../scripts/trace-lanes.ts'
import { MIB, sizeName, sizesOf } from './bench.ts'
import { BENCHES } from './benches.ts'
import { compareHeld, layersOf, writeVersions } from './checkpoint.ts'
import { daemonOptions } from './daemon-options.ts'
import type { BenchDocument } from './document.ts'
import { compareMetas } from './gather.ts'
import { layOut, planOf } from './models.ts'
import { parseOptions } from './options.ts'
import { FileDigests } from './pattern-file.ts'
import { compareLists, listsOf } from './pickle.ts'
import { comparePlan } from './plan.ts'
import { ON_PROCESS, runBenches } from './run.ts'
import { compareWeights } from './engine.ts'
import { tableRow, verdict } from './table.ts'

setDefaultTimeout(120_000)

const MAIN = join(import.meta.dir, 'main.ts')

async function bench(...args: string[]) {
  const child = Bun.spawn([process.execPath, MAIN, ...args], { stdout: 'pipe', stderr: 'pipe' })
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ])
  return { status: await child.exited, out, err }
}

/** Runs in this process with a library that some of whose methods are replaced. */
async function benchWith(change: (real: Library) => Partial<Library>, ...args: string[]) {
  const printed: string[] = []
  const status = await runBenches(['--json', ...args], {
    ...ON_PROCESS,
    print: async (text) => {
      printed.push(text)
    },
    open: (options) => {
      const real = openLibrary(options)
      const changed = change(real)
      return new Proxy(real, {
        get: (_, name) => {
          const replaced = changed[name as keyof Library]
          if (replaced !== undefined) return replaced
          const value = real[name as keyof Library]
          return typeof value === 'function' ? value.bind(real) : value
        },
      })
    },
    signal: new AbortController().signal,
  })
  expect(printed).toHaveLength(1)
  return { status, document: JSON.parse(printed[0]!) as BenchDocument }
}

describe('the program', () => {
  test('--json --only plan pickle prints one document', async () => {
    const { status, out, err } = await bench('--json', '--only', 'plan', 'pickle')
    expect(err).toBe('')
    expect(status).toBe(0)
    const document = JSON.parse(out) as BenchDocument
    expect(document).toMatchObject({ ok: true, wrong: 0, live_objects: 0, error: null })
    expect(document.header).toEqual({
      date: expect.stringMatching(/^\d{4}-\d{2}-\d{2}$/),
      command: 'bun run bench --json --only plan pickle',
      ckpt: expect.stringMatching(/^\d+\.\d+\.\d+$/),
      bun: Bun.version,
      library: 'host',
      cores: expect.any(Number),
      cpu: expect.any(String),
      numa_nodes: document.header.numa_nodes === null ? null : expect.any(Number),
      os: expect.stringMatching(/^Linux \d/),
      driver: null,
      cuda: null,
      devices: [
        {
          name: 'ckpt host device 0',
          uuid: expect.stringMatching(/^GPU-/),
          pci: '',
          numa_node: null,
          pcie: null,
        },
      ],
    })
    const tensors = [399, 18_432, 140_000]
    const rows = [...document.rows]
    expect(rows.map((row) => [row.bench, row.tensors])).toEqual([
      ...tensors.map((count) => ['plan', count]),
      ['plan', 139_583],
      ...tensors.map((count) => ['pickle', count]),
    ])
    for (const row of rows) {
      expect(row.runs).toBeGreaterThan(0)
      expect(row.p50_s).toBeGreaterThan(0)
      expect(row.p99_s).toBeGreaterThanOrEqual(row.p50_s)
      expect(row.compared).toBeGreaterThanOrEqual(row.tensors!)
      expect(row.bytes === null).toBe(row.bench === 'plan')
      expect(row.gb_per_s === null).toBe(row.bench === 'plan')
    }
  })

  test('the table of a broadcast has algbw and busbw, and a verdict', async () => {
    const { status, out } = await bench('--only', 'broadcast', '--mib', '1')
    expect(status).toBe(0)
    expect(out).toMatch(/^# ckpt .* Bun .* host library, \d+ cores/)
    expect(out).toMatch(/^broadcast +2 ranks, 1 MiB +1048576 +\d+( +\d+\.\d+){4} +- +0$/m)
    expect(out).toMatch(/^broadcast +4 ranks, 1 MiB +1048576 +\d+( +\d+\.\d+){4} +- +0$/m)
    expect(out).toMatch(/# ok: 0 of \d+ ranges wrong, nothing left, \d+\.\d s\n$/)
  })

  const refused = [
    ['--only', 'nothing'],
    ['--mib', '0'],
    ['--sizes', '96K'],
    ['--sizes', '2K'],
    ['--sizes', '1G..64K'],
    ['--sizes', '1M..2M..4M'],
    ['--sizes', '1M', '--mib', '1'],
    ['--fast'],
    ['--devices', 'tpu'],
  ]
  for (const args of refused) {
    test(`${args.join(' ')} is refused`, async () => {
      const { status, out, err } = await bench(...args)
      expect([status, out]).toEqual([2, ''])
      expect(err).toStartWith('bench: ')
    })
  }
})

describe('sizes', () => {
  const KIB = 1024
  test('single ones and every power of two of a range', () => {
    expect([...parseOptions(['--sizes', '64K..1M', '16M', '1G..1G']).sizes]).toEqual([
      64 * KIB,
      128 * KIB,
      256 * KIB,
      512 * KIB,
      MIB,
      16 * MIB,
      1024 * MIB,
    ])
    expect(parseOptions(['--sizes', '64K..1G']).sizes).toHaveLength(15)
    expect(parseOptions(['--mib', '3']).sizes).toEqual([3 * MIB])
    expect(parseOptions([]).sizes).toEqual([MIB, 16 * MIB])
  })

  test('a bench takes what is too small as its smallest, once', () => {
    const sizes = parseOptions(['--sizes', '64K..2M']).sizes
    const bench = (name: string) => BENCHES.find((one) => one.name === name)!
    expect(sizesOf(bench('register'), sizes)).toEqual([MIB, 2 * MIB])
    expect(sizesOf(bench('h2d'), sizes)).toEqual([...sizes])
  })

  test('have names with the largest unit that fits', () => {
    expect([192, 64 * KIB, MIB, 1536 * KIB, 65 * MIB, 1024 * MIB].map(sizeName)).toEqual([
      '192 B',
      '64 KiB',
      '1 MiB',
      '1536 KiB',
      '65 MiB',
      '1 GiB',
    ])
  })
})

describe('trace', () => {
  test('writes the timeline of one update, of the last size', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
    try {
      const path = join(dir, 'out.json')
      const args = ['--json', '--only', 'trace', '--mib', '1', '2', '--trace', path]
      const { status, out, err } = await bench(...args)
      expect([status, err]).toEqual([0, ''])
      const { rows } = JSON.parse(out) as BenchDocument
      expect(rows).toMatchObject([
        { bench: 'trace', case: '2 MiB, 2 ranks, to out.json', runs: 1, wrong: 0 },
      ])
      const { title, lanes } = readTrace(readFileSync(path, 'utf8'))
      expect(title).toStartWith('One update, 2 MiB: ')
      expect(title).toContain(', 2 ranks, ')
      const names = lanes.map(({ group, name }) => `${group} ${name}`)
      expect(names).toContain('update phases')
      for (const rank of [0, 1]) expect(names).toContain(`rank ${rank} reload`)
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
  })

  test('runs only when it is named', () => {
    expect(parseOptions([]).only).not.toContain('trace')
  })
})

describe('a copy that is not right is counted', () => {
  const cases: Record<string, { change: (real: Library) => Partial<Library>; rows: string[] }> = {
    h2d: {
      change: (real) => ({
        copyH2d: (stream, memory, at, buffer, from, bytes) =>
          real.copyH2d(stream, memory, at, buffer, from, bytes - 1),
        copyH2d2d: (stream, memory, at, pitch, buffer, from, fromPitch, width, height) =>
          real.copyH2d2d(stream, memory, at, pitch, buffer, from, fromPitch, width - 1, height),
      }),
      rows: [
        '1 MiB the limit: pinned, one copy',
        ...['pinned', 'shm', 'page cache'].flatMap((name) => [
          `1 MiB ${name}, one copy`,
          `1 MiB ${name}, 16 on 1 stream`,
          `1 MiB ${name}, 16 on 2 streams`,
          `1 MiB ${name}, 16 on 4 streams`,
        ]),
        ...[2, 8].flatMap((pitch) =>
          ['192 B', '512 B', '1 KiB', '2 KiB', '4 KiB', '8 KiB'].map(
            (width) => `pinned, rows of ${width}, pitch of ${pitch} rows`,
          ),
        ),
      ],
    },
    broadcast: {
      change: (real) => ({
        groupBroadcast: (group, member, root, offset, bytes) =>
          real.groupBroadcast(group, member, root, offset, bytes - 1),
      }),
      rows: ['2 ranks, 1 MiB', '4 ranks, 1 MiB'],
    },
    reload: {
      change: (real) => ({
        groupBroadcast: (group, member, root, offset, bytes) =>
          real.groupBroadcast(group, member, root, offset, bytes - 1),
        copyDevice: (stream, dst, src, [first, ...rest]) =>
          real.copyDevice(stream, dst, src, [{ ...first!, bytes: first!.bytes - 1 }, ...rest]),
      }),
      rows: [
        '1 MiB the limit: one broadcast',
        '1 MiB in one piece',
        '1 MiB in 4 of 256 KiB',
        '1 MiB in 256 of 4 KiB',
      ],
    },
    direct: {
      change: (real) => ({
        copyH2dBatch: (stream, pieces) =>
          real.copyH2dBatch(
            stream,
            pieces.map((piece) => ({ ...piece, width: piece.width - 1 })),
          ),
      }),
      rows: ['dense, tp 1', 'dense, tp 8', 'moe, tp 1', 'moe, tp 8'].map(
        (name) => `16 MiB ${name}`,
      ),
    },
  }
  for (const [name, { change, rows }] of Object.entries(cases)) {
    test(name, async () => {
      const { status, document } = await benchWith(change, '--only', name, '--mib', '1')
      expect(status).toBe(1)
      expect(document).toMatchObject({ ok: false, live_objects: 0, error: null })
      expect(document.rows.map((row) => row.case).toSorted()).toEqual(rows.toSorted())
      for (const row of document.rows) {
        expect(row.wrong).toBeGreaterThan(0)
        // a run's ranges: those of a broadcast are the ranks, whose root has what it had
        const ranges = Number(/ in (\d+) of|^(\d+) ranks/.exec(row.case)?.slice(1).join('') || 1)
        const runs = row.compared / ranges
        expect(row.wrong).toBe(name === 'broadcast' ? runs * (ranges - 1) : runs)
      }
    })
  }

  test('and is not where all are right; a limit is a rate of the same run', async () => {
    const only = ['--only', 'h2d', 'broadcast', 'reload', '--sizes', '64K']
    const { status, document } = await benchWith(() => ({}), ...only)
    expect([status, document.ok, document.wrong, document.notes]).toEqual([0, true, 0, []])
    for (const row of document.rows) {
      const limit = document.rows.find((one) => {
        return one.bench === row.bench && one.case.includes('the limit')
      })
      expect(limit === undefined).toBe(row.bench === 'broadcast')
      expect(row.limit_gb_per_s).toBe(limit === row ? null : (limit?.gb_per_s ?? null))
    }
  })

  test('and is not in direct, whose rows say what was copied', async () => {
    const { status, document } = await benchWith(() => ({}), '--only', 'direct', '--mib', '1')
    expect([status, document.wrong, document.live_objects]).toEqual([0, 0, 0])
    const experts = { single: 9, rows: 0, pieces: 9, gathered: 2 }
    expect(document.rows.map(({ case: name, copies }) => [name, copies])).toEqual([
      ['16 MiB dense, tp 1', { single: 21, rows: 0, pieces: 0, gathered: 0 }],
      ['16 MiB dense, tp 8', { single: 88, rows: 16, pieces: 96, gathered: 16 }],
      ['16 MiB moe, tp 1', experts],
      ['16 MiB moe, tp 8', { single: 48, rows: 24, pieces: 72, gathered: 16 }],
    ])
    for (const row of document.rows) {
      expect(row.compared).toBeGreaterThan(0)
      expect(row.limit_gb_per_s).toBeGreaterThan(0)
      expect(row.claims).toEqual([])
    }
    const [, , row] = document.rows
    expect(tableRow(row!)).toEndWith('\n#   9 copies and 0 of rows, 9 pieces gathered into 2')
  })

  test('also where the end of a stream is looked for as with the CUDA library', async () => {
    const kind = { kind: 'cuda' } as const
    const only = ['--only', 'broadcast', 'reload', '--sizes', '64K']
    const right = await benchWith(() => kind, ...only)
    expect([right.status, right.document.wrong]).toEqual([0, 0])
    const late = await benchWith((real) => ({ ...kind, ...cases.reload!.change(real) }), ...only)
    expect(late.document.rows.every((row) => row.wrong > 0)).toBe(true)
  })

  test('what cannot be mapped in place is left out, with a note', async () => {
    const { status, document } = await benchWith(
      () => ({
        fileLease: () => {
          throw new CkptError('checkpoint_busy', 'its file system has no leases')
        },
      }),
      '--only',
      'h2d',
      '--sizes',
      '64K',
    )
    expect([status, document.live_objects]).toEqual([0, 0])
    expect(document.rows.every((row) => row.case.includes('pinned'))).toBe(true)
    expect(document.notes).toHaveLength(2)
    expect(verdict(document)).toContain('# note: h2d: left out: lease refused')
  })

  test('objects that are not freed', async () => {
    const kept: number[] = []
    const { status, document } = await benchWith(
      () => ({ memoryFree: (memory) => void kept.push(memory) }),
      '--only',
      'reload',
      '--sizes',
      '64K',
    )
    for (const memory of kept) openLibrary({ kind: 'host' }).memoryFree(memory)
    expect([status, document.ok, document.wrong, document.live_objects]).toEqual([1, false, 0, 2])
  })

  test('a failure ends the run and is told', async () => {
    const { status, document } = await benchWith(
      () => ({
        streamSync: () => {
          throw new Error('broken')
        },
      }),
      '--only',
      'h2d',
    )
    expect([status, document.ok, document.live_objects]).toEqual([1, false, 0])
    expect(document.error).toMatchObject({ code: 'internal', message: 'broken' })
  })
})

describe('what is compared', () => {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
  let versions: Awaited<ReturnType<typeof writeVersions>>
  beforeAll(async () => {
    versions = await writeVersions(dir, layersOf(2 * MIB), 2 * MIB)
  })
  afterAll(() => rmSync(dir, { recursive: true, force: true }))

  test('registered bytes: another version is all wrong', async () => {
    const options = daemonOptions('host', null, dir)
    const library = openLibrary(options.library)
    const registry = await createRegistry(options)
    try {
      await registry.register('a', { files: [...versions[0].files] }, null)
      const lease = registry.lease('a')
      const wrongOf = (index: 0 | 1) =>
        compareHeld(library, lease.version, versions[index].ranges, new FileDigests())
      expect(wrongOf(0)).toEqual({ compared: 4, wrong: 0 })
      expect(wrongOf(1)).toEqual({ compared: 4, wrong: 4 })
      lease.release(false)
    } finally {
      await registry.close()
    }
    expect(library.liveObjects()).toBe(0)
  })

  test('weights of an engine: one byte, one missing tensor, a missing rank', async () => {
    const expected = await expectedTensors(versions[0].files, 2)
    const rank = (index: number) => {
      const tensors = [...expected].map(([name, { dtype, shape, sha256 }]) => {
        const held = { dtype: dtype as string, shape: [...shape], sha256: sha256[index]! as string }
        return [name, held] as const
      })
      return { uuid: `GPU-${index}`, tensors: Object.fromEntries(tensors) }
    }
    const weights: EngineWeights = {
      version: null,
      updates: 1,
      torn: false,
      ranks: [rank(0), rank(1)],
    }
    expect(compareWeights(weights, expected, 2)).toEqual({ compared: 8, wrong: 0 })
    weights.ranks[0]!.tensors['layers.0.norm.weight']!.sha256 = '00'
    delete weights.ranks[1]!.tensors['layers.1.proj.weight']
    expect(compareWeights(weights, expected, 2)).toEqual({ compared: 8, wrong: 2 })
    weights.ranks.pop()
    expect(compareWeights(weights, expected, 2)).toEqual({ compared: 8, wrong: 5 })
  })

  test('plans and lists: a segment and a tensor in another place', () => {
    const model = layOut('small', layersOf(64 * MIB))
    const plan = planOf(model)
    expect(comparePlan(model, plan)).toEqual({ compared: 128, wrong: 0 })
    const lists = listsOf(model, plan)
    expect(compareLists(model, plan, lists)).toEqual({ compared: 128, wrong: 0 })
    const segmentSource = plan.segmentSource.with(0, plan.segmentSource[0]! + 1)
    expect(comparePlan(model, { ...plan, segmentSource }).wrong).toBeGreaterThan(0)
    const order = plan.order.with(0, plan.order[1]!)
    expect(comparePlan(model, { ...plan, order }).wrong).toBeGreaterThan(0)
    const tensorRing = plan.tensorRing.with(plan.order[0]!, 7)
    expect(compareLists(model, plan, listsOf(model, { ...plan, tensorRing })).wrong).toBe(1)
    expect(compareLists(model, plan, lists.slice(1)).wrong).toBeGreaterThan(0)
  })

  test('metas: a tensor missing, a shape that differs', () => {
    const shapes = layersOf(2 * MIB)
    const metas = shapes.map(({ name, shape }) => {
      return { name, dtype: 'torch.bfloat16', shape: [...shape], aligned_size: 256 }
    })
    const list = (of: typeof metas) => ({
      '0': {
        memory_buffer_metas_list: [{ metas: of, ptr: 0, size: 256 }],
        p2p_store_addr: null,
        rdma_device: '',
      },
    })
    expect(compareMetas(list(metas), shapes)).toEqual({ compared: 4, wrong: 0 })
    expect(compareMetas(list(metas.slice(1)), shapes).wrong).toBe(1)
    metas[2]!.shape = [1]
    expect(compareMetas(list(metas), shapes).wrong).toBe(1)
  })
})

test('an interrupted run ends early and leaves no directory and no shared memory', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
  try {
    const child = Bun.spawn([process.execPath, MAIN, '--only', 'h2d', '--mib', '64', '65'], {
      stdout: 'pipe',
      stderr: 'pipe',
      env: { ...process.env, TMPDIR: dir },
    })
    const reader = child.stdout.getReader()
    await reader.read() // the header: signals are taken from before it on
    child.kill('SIGINT')
    expect(await child.exited).toBe(1)
    const own = [`ckpt-${child.pid}-`, `ckpt-bench-${child.pid}-`]
    const shared = readdirSync('/dev/shm').filter((name) =>
      own.some((start) => name.startsWith(start)),
    )
    expect([...shared, ...readdirSync(dir)]).toEqual([])
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
})
