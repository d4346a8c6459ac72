import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Library, selectDevices } from '@ckpt/cuda'
import { headerOf } from './document.ts'
import { tableHead } from './table.ts'

const UUID = 'GPU-01234567-89ab-cdef-0123-456789abcdef'
const GPU = {
  name: 'NVIDIA H100 80GB HBM3',
  uuid: UUID,
  pci: '0000:4E:00.0',
  totalBytes: 2 ** 36,
  numaNode: 1,
}
const VERSION = `echo 'NVIDIA-SMI version  : 580.65.06'
echo 'NVML version        : 580.65'
echo 'DRIVER version      : 580.65.06'
echo 'CUDA Version        : 13.0'`
const TABLE = `echo '| NVIDIA-SMI 525.60.13    Driver Version: 525.60.13    CUDA Version: 12.0     |'`

const path = process.env.PATH
let dir = ''
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-test-'))
  process.env.PATH = dir
})
afterEach(() => {
  process.env.PATH = path
  rmSync(dir, { recursive: true, force: true })
})

/** An `nvidia-smi` on PATH: a query gives `csv`, `--version` and a plain call run these lines. */
function install(csv: string, version: string, plain: string): void {
  writeFileSync(
    join(dir, 'nvidia-smi'),
    `#!/bin/sh
case "$*" in
  "--query-gpu=uuid,driver_version,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current,pcie.link.width.max --format=csv,noheader,nounits")
    echo '${csv}' ;;
  --version) ${version} ;;
  "") ${plain} ;;
  *) exit 1 ;;
esac
`,
    { mode: 0o755 },
  )
}

const cuda = { kind: 'cuda', deviceDescribe: () => GPU } as unknown as Library
const head = () => headerOf(selectDevices('host', null), cuda, [])

describe('the header with the CUDA library', () => {
  test('has driver, CUDA version, link and NUMA node', () => {
    install(`${UUID}, 580.65.06, 1, 5, 16, 16`, VERSION, 'exit 1')
    const header = head()
    const pcie = { generation: 1, generation_max: 5, width: 16, width_max: 16 }
    expect(header).toMatchObject({ driver: '580.65.06', cuda: '13.0' })
    expect(header.devices).toEqual([
      { name: GPU.name, uuid: UUID, pci: GPU.pci, numa_node: 1, pcie },
    ])
    const lines = tableHead(header).split('\n')
    expect(lines[1]).toMatch(/^# Linux \d.*, driver 580\.65\.06, CUDA 13\.0$/)
    expect(lines[2]).toBe(
      '# device 0: NVIDIA H100 80GB HBM3, 0000:4E:00.0, NUMA node 1, PCIe gen 1 (of 5) x16 (of 16)',
    )
  })

  test('takes the version from the table of an older nvidia-smi', () => {
    install(`${UUID}, 525.60.13, [N/A], 4, [N/A], 16`, 'exit 2', TABLE)
    const header = head()
    expect(header).toMatchObject({ driver: '525.60.13', cuda: '12.0' })
    expect(tableHead(header)).toContain('PCIe gen ? (of 4) x? (of 16)')
  })

  test('has no link of a device that nvidia-smi does not list', () => {
    install('GPU-another, 580.65.06, 5, 5, 16, 16', VERSION, 'exit 1')
    expect(head().devices[0]!.pcie).toBeNull()
  })

  for (const [name, make] of Object.entries({
    'without nvidia-smi': () => {},
    'with one that fails': () =>
      writeFileSync(join(dir, 'nvidia-smi'), '#!/bin/sh\nexit 9\n', { mode: 0o755 }),
    'with one that is no program': () =>
      writeFileSync(join(dir, 'nvidia-smi'), '', { mode: 0o644 }),
  })) {
    test(`${name} says what is not known`, () => {
      make()
      const header = head()
      expect(header).toMatchObject({ driver: null, cuda: null })
      expect(header.devices[0]).toMatchObject({ name: GPU.name, pcie: null })
      expect(tableHead(header)).toContain(', driver unknown, CUDA unknown')
    })
  }

  test('does not ask nvidia-smi for the host library', () => {
    install(`${UUID}, 580.65.06, 1, 5, 16, 16`, VERSION, 'exit 1')
    const host = { kind: 'host', deviceDescribe: () => GPU } as unknown as Library
    expect(headerOf(selectDevices('host', null), host, [])).toMatchObject({
      driver: null,
      cuda: null,
    })
  })
})

test('the header has the command without the place of anything', () => {
  const host = { kind: 'host', deviceDescribe: () => GPU } as unknown as Library
  const args = ['--sizes', '64K..1G', '--devices', 'cuda:0,1', '--wheels', '/home/someone/wheels']
  const { date, command } = headerOf(selectDevices('host', null), host, args)
  expect(command).toBe('bun run bench --sizes 64K..1G --devices cuda:0,1 --wheels wheels')
  expect(Date.parse(date)).toBeLessThanOrEqual(Date.now())
})
