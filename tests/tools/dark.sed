# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Replaces the colors of a drawing with those for dark pages; make docs applies it to the drawings in docs/images.
s/#1f2328/#e6edf3/g
s/#59636e/#9198a1/g
s/#f6f8fa/#151b23/g
s/#d1d9e0/#3d444d/g
s/#0969da/#4493f8/g
s/#54aeff/#1f6feb/g
s/fill="#ffffff">$/fill="#0d1117">/
