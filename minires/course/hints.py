"""A hint for each pattern that a check may report, by how the pattern begins. The first that fits is shown."""

HINTS = {
    "input modified": "Never write into an array that you were given: others use it too. Write x = x - m instead of "
    "x -= m, or work on a copy.",
    "it is None": "A function without a `return` returns None.",
    "wrong number of results": "Look at the end of the docstring: what should be returned, and in which order?",
    "wrong type": "The docstring says what to return: an array, a number, a Tensor? For a Tensor t, t.data is the "
    "array; np.array(...) makes an array of a list. For an array a with one entry, a.item() is the number; // divides "
    "whole numbers into a whole number.",
    "wrong dtype": "The result should have the dtype of the input. Look for np.zeros, np.ones or np.array without a "
    "dtype, and for a float32 or float64 in your code.",
    "wrong shape": "Write the shape next to each line of your code and compare it with the docstring. Which line is "
    "the first to differ?",
    "NaN": "Look for a division by zero, the logarithm of zero, the exponential of a large number, or an array from "
    "np.empty that was never filled.",
    "all zero": "Nothing arrives. Is anything ever written into the result, or is it multiplied by something that is "
    "zero?",
    "transposed": "The numbers are right, but the axes are in a different order from the docstring's.",
    "the upstream gradient came through": "The chain rule: upstream gradient times local derivative. The second "
    "factor is missing.",
    "the upstream gradient is missing as a factor": "The chain rule: upstream gradient times local derivative. The "
    "first factor is missing.",
    "the upstream gradient is missing": "Gradients add. Two paths meet here, and one of them was overwritten: + or =?",
    "constant ratio -1": "The sign is wrong.",
    "constant ratio": "There is a factor too many or too few: a mean in place of a sum (or the reverse), 1/N, the 2 "
    "of a square, a gradient that was set where it should have been added.",
    "reversed": "The numbers are right, but they run backwards along an axis.",
    "shifted": "Check the index arithmetic: where does a window begin, with this stride and this padding?",
    "only the borders": "Right inside, wrong at the edge: look at the padding, or at where a loop starts and ends.",
    "the right numbers in another order": "Look at the order of loops, reshapes and transposes: which axis varies "
    "fastest?",
    "right for the first entry": "Only the first entry along axis 0 (the first image of a batch, say) is right: is "
    "there an index 0 in your code, or a shape that fits one image only?",
    "off by one constant per channel": "A term that is the same for an entire channel is missing: a bias, or one with "
    "a mean.",
    "nearly right": "The main terms of the formula are there. Look for float32 where float64 is needed, for a small "
    "number (an epsilon, a step h) that is wrong or in the wrong place, for N - 1 instead of N.",
    "it cannot be loaded": "Python could not run your file to its end; it stopped at the line quoted below.",
    "it stops with RecursionError": "Python's own stack holds about 1,000 calls. Use a loop, with a list as the stack.",
    "the answer ended Python": "Python ended in the middle of your answer, without an error. Look for os._exit.",
    "it stops with": "Python stopped at the line quoted below. Print shapes and values just before it.",
    "a part of it is not started": "There is still a `raise NotImplementedError` to replace in this exercise.",
}
