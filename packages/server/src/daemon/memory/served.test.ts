import { expect, test } from 'bun:test'
import type { Library } from '@ckpt/cuda'
import type { NetworkDeviceInfo } from '../types.ts'
import { ServedMemory } from './served.ts'

const device = (name: string): NetworkDeviceInfo => ({ name, bytesPerSecond: 25e9 })

/** What UCX is opened with when these serve a buffer, and then another. */
function openedWith(devices: readonly NetworkDeviceInfo[]): string[] {
  const opened: string[] = []
  const p2p = {
    open(names: string) {
      opened.push(names)
      return 7
    },
    address: () => Uint8Array.of(1),
    share: () => Uint8Array.of(2),
  }
  const served = new ServedMemory({ p2p } as unknown as Library, devices)
  served.serve([1])
  served.serve([2])
  return opened
}

test('memory is served over the devices that the ranks read over, each named once', () => {
  const [first, second] = [device('mlx5_0'), device('mlx5_3')]
  expect(openedWith([first, first, second, second])).toEqual(['mlx5_0:1,mlx5_3:1'])
})

test('without any UCX chooses', () => {
  expect(openedWith([])).toEqual([''])
})
